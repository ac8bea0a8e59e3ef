"""What travels in a bundle and runs on the other machine: ``install.sh``, ``verify.py``, ``README.txt``."""
