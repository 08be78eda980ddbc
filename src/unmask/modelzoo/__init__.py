"""The YAML files of the MindSpore model zoo's MAE, in terms of ours."""
