"""The playground: decode one prompt with and without the draft, side by side, in a web page or in the terminal."""
