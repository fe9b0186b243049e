"""`python -m fusedopt`."""

from fusedopt.cli import main

raise SystemExit(main())
