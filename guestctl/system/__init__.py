"""Systems: a root file system as what boots or runs elsewhere, made without root."""
