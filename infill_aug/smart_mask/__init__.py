"""Smart mask: keep what an editor was asked to change, undo the rest."""
