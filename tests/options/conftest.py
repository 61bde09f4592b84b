"""Where the tests of options run: in one process, in a folder that holds a little of everything."""

import pytest


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS', 'RANK'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A current folder with one image folder, an empty one and stray files."""
    (tmp_path / 'images' / 'train' / 'cat').mkdir(parents=True)
    (tmp_path / 'images' / 'map.json').write_text('{}')
    (tmp_path / 'images' / 'map.txt').write_text('cat\n')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_config(tmp_path):
    """Writes a configuration file and returns its path."""

    def write(text):
        path = tmp_path / 'config.yaml'
        path.write_text(text)
        return str(path)

    return write
