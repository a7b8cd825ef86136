"""The commands of the command line, one module each; the modules beside them do the work and import torch."""
