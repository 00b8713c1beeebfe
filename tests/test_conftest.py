"""The suite's own guard: no test reaches the network."""

import socket
import urllib.request

import pytest


@pytest.mark.parametrize("address", ["http://example.com/", "http://192.0.2.1/"])
def test_other_machines_are_refused_by_name(address):
    with pytest.raises(
        pytest.fail.Exception, match="a test wants to reach (example.com|192.0.2.1): tests run without network"
    ):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address)


def test_connect_ex_is_refused():
    with socket.socket() as one, pytest.raises(pytest.fail.Exception, match="192.0.2.1"):
        one.connect_ex(("192.0.2.1", 80))


def test_this_machine_and_unix_sockets_answer(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
