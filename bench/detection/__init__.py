"""Evidence for drift detection: false pages, delay, and what people would use instead.

    python -m bench.detection [--quick] [--only false-pages,delay] [--results FOLDER]

Every section runs the shipped code, prints one table and writes its figures. docs/detection.md
holds the table of a full run, with what was not measured.
"""
