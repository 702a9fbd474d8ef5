"""What becomes of an outbox that is damaged: it is set aside, and what it holds goes on.

`set_aside` has the order of steps that no power cut can break, `rebuilding` what the new
outbox is made of, `findings` which rows of the old one are taken, `trees` and `pages`
how they are read where SQLite itself gives up.
"""
