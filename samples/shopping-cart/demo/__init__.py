"""The demo: the shopping cart from zero, through load, a crash and back to zero, with every acknowledged command checked."""
