"""How fast the stack is, part by part, beside floors and peers that are measured in the same run."""
