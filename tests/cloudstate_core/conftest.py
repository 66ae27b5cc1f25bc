"""NOT COMMITTED, PLEASE REPLACE: the transport tests' conftest stood here (the `bench` fixture). It was overwritten by mistake at 12:38:23
by the work on the journal, before it was in git, and no copy is known but its author's. Nothing else uses this file: write yours over it."""
