import pytest
from scenes import Table


@pytest.fixture(scope="session")
def engine_table() -> Table:
    return Table("engine")


@pytest.fixture(scope="session")
def time_table() -> Table:
    return Table("time")
