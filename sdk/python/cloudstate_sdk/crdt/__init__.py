"""The eight replicated data types, as values and collections that know what has been changed in them.

Each is a *view* on the value that this process holds: it shows that value with the changes made through it. The changes become part of the held
value when the command that made them is answered, and are forgotten when it fails; so commands that run at the same time do not see each other's
unfinished changes.
"""

from cloudstate_sdk.crdt.base import Crdt, NotYourTurn
from cloudstate_sdk.crdt.counters import GCounter, PNCounter
from cloudstate_sdk.crdt.flag import Flag
from cloudstate_sdk.crdt.map import ORMap
from cloudstate_sdk.crdt.register import Clock, LWWRegister
from cloudstate_sdk.crdt.sets import GSet, ORSet
from cloudstate_sdk.crdt.vote import Vote

__all__ = ["Clock", "Crdt", "Flag", "GCounter", "GSet", "LWWRegister", "NotYourTurn", "ORMap", "ORSet", "PNCounter", "Vote"]
