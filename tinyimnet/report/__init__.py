"""HTML report of one or several runs: a self-contained page that needs no server and no network.

run/record.py reads the data and run/metrics.py names the metrics, so no metric is described here. The HTML, CSS and
JavaScript are in templates/. W&B views are in tracking/, and the files of an evaluation are written by evaluation/.
"""
