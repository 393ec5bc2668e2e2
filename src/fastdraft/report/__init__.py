"""Results for people: one HTML page or PNG figures about runs, and the tables that commands print to the terminal."""
