"""What ``latentwire bench`` measures a step against: operations, the machine, a plain loop."""
