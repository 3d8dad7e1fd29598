"""One module per command of `sidecar`: its options, and what it does.

A command is a module with `HELP` (one line), `add(parser)`, which declares its options, and
`run(parsed)`, which returns the exit status. `sidecar.cli` puts them together.

Guarantees: importing a command loads base dependencies only, so that `sidecar --help` answers at
once and everywhere; what a command needs beyond them it imports when it runs, through `needs`,
whose error names the extra to install.
"""
