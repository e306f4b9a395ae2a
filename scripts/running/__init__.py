"""What surrounds a run of ``fit.py``: its command line, checks, checkpoint, report and errors."""
