"""`python -m medray.cli` is `medray`."""

from medray.cli.front import main

main()
