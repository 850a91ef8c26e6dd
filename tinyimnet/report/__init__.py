"""Runs as one HTML page that needs no server and no network: what is on it and how it is drawn.

What the page shows is read by run/record.py and named by run/metrics.py, so that no metric is described here; its HTML, CSS
and JavaScript are files in templates/. Views on W&B are in tracking/, and what an evaluation writes is in evaluation/.
"""
