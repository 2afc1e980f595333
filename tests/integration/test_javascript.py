"""The program in JavaScript of docs/clients.md runs as it stands."""

from generation_readers import list_documented_code, run_javascript
from server_process import ServerProcess

ADDRESS = "'127.0.0.1:50051'"


def test_the_documented_program_prints_tokens(paced_server: ServerProcess) -> None:
    loop, call = list_documented_code()
    assert call.count(ADDRESS) == 1
    printed = run_javascript(loop + call.replace(ADDRESS, f"'{paced_server.target}'"))
    lines = printed.splitlines()
    assert lines
    assert all(" p = " in line for line in lines)
