"""What all tests share."""


def pytest_addoption(parser):
    parser.addoption("--update-snapshots", action="store_true", help="write tests/snapshots/ anew")
