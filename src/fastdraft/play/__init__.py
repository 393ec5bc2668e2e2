"""Two decodings of one prompt side by side, for people: plain, and with the draft."""
