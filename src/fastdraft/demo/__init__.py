"""The packaged small target: real weights trained by this project, and how to make them again."""
