"""What operators look at in Grafana, as code: `make dashboards` writes dashboards/json/*.json.

`queries` says what is asked of Prometheus, `panels` how an answer is drawn, `shell` what every
dashboard has around its panels, and `boards/` has one module for each dashboard.
"""
