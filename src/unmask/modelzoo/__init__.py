"""The MindSpore model zoo's MAE: its YAML files and the names of its tensors, in terms of ours."""
