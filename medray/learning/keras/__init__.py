"""Models from Keras files, read as data: a file (`reading.py`) becomes a description that is checked (`network.py`) and arrays;
a description becomes plain torch layers (`building.py`), and a file again (`writing.py`).

Keras is neither needed nor asked: its `load_model` can run code that a file brings. What stands in a file is compared with a
closed list of layers and settings (`layers/`), and refused by name where it is not on it. Files are opened in a child process
(`child.py`) with limits of memory and time, HDF5 after the JSON has said which arrays of which shapes there have to be.
"""
