"""What all tests share: their order. What fails in seconds is reported before the minutes begin."""


def pytest_collection_modifyitems(items):
    def minutes(item) -> int:
        return 2 if item.path.suffix == ".ipynb" else 1 if item.get_closest_marker("slow") else 0

    items.sort(key=minutes)
