"""Crashes a posting program in every way that can be arranged, and looks for lost events.

Two methods. Processes are killed at random moments (`killing`). And what a power cut may
leave is worked out from a recording of the file operations of a real program: writes that
were not synced are dropped, kept in part, torn or reordered, and each result is opened and
looked through (`recording`, `images`, `examining`).
"""
