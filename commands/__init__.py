"""One file a command: parse, call, print. The only place where the two halves of the house meet."""
