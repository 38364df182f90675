"""`python -m medray.cli` is `medray`."""

from medray.cli.app import main

main()
