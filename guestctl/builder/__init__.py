"""The builder: definitions in, artifacts out, over a pool of pristine guests.

Nothing in here uses more of guestctl than a builder of somebody else's could: what
`from guestctl import …` gives, and the definitions.
"""
