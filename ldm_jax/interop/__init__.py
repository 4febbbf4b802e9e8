"""Models of other systems, read and written.

`model_files` is the door. The formats of each system have a room, as have the parity cases; `mapping` and
`foreign_options` are what all formats are made of.
"""
