"""`python -m mmrl`, and `torchrun ... -m mmrl` for several processes."""

from mmrl.cli.main import main

main()
