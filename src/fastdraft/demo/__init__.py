"""The packaged demo target and its draft, trained by this project, and the script that rebuilds them."""
