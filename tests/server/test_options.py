import os
import socket

import pytest

from sdpl.server import options


@pytest.mark.parametrize("address", ["{folder}/notify", "@sdpl-test-{folder}"])
def test_a_service_manager_that_asked_hears_that_requests_are_served(monkeypatch, tmp_path, address):
    named = address.format(folder=tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(named.replace("@", "\0"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", named)
        options.tell_systemd()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nobody/listens"])
def test_where_nobody_asked_or_listens_nothing_happens(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    options.tell_systemd()


def test_a_model_behind_a_link_is_called_like_the_link(bundle, tmp_path):
    link = tmp_path / "birds.sdpl"
    link.symlink_to(bundle)
    assert options.models((str(link),)) == {"birds": str(link)}


def test_a_path_through_a_link_leads_where_the_system_says(bundle, tmp_path, monkeypatch):
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "real" / "birds.sdpl").symlink_to(bundle)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "below")
    monkeypatch.chdir(tmp_path)
    [(name, path)] = options.models(("link/../birds.sdpl",)).items()
    assert name == "birds"
    assert os.path.isabs(path)
    assert os.path.samefile(path, bundle)
