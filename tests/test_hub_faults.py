"""What goes wrong between here and the Hub: survived with one commit, or told in a line with everything safe."""

import re
import threading

import pytest

from tgo_trl.hub import repositories, uploads
from tgo_trl.hub.repositories import UploadError, explain, open_repository
from tgo_trl.hub.uploads import Upload, Uploads, folder_operations

from .hub_server import READ_TOKEN

REQUESTS = {
    "create": r"POST /api/repos/create",
    "look": r"GET /api/models/me/mine$",
    "announce": r"POST .*/preupload/",
    "batch": r"POST .*/objects/batch",
    "file": r"PUT /lfs/",
    "verify": r"POST /lfs/.*/verify",
    "card": r"POST /api/validate-yaml",
    "commit": r"POST .*/commit/",
}
"""The requests of an upload, in order."""
RETRIED_BY_CLIENT = ("announce", "batch", "file", "verify")
PASSING = (408, 429, 500, 502, 503, 504)
BROKEN = ("drop", "reset", "cut", "lost", "lost-status", "hang", "slow")
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Mine\n", "tgo_config.json": b"{}", "weights.safetensors": b"weights" * 99,
    "samples/1.png": b"png",
}  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(naps, monkeypatch, request):
    """Nobody sleeps; a request is given up after a moment where it is known to hang, and only there."""
    if "-hang" in request.node.name:
        monkeypatch.setattr(repositories, "SILENCE", 0.3)


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def push(folder, **settings):
    """As a run does: the repository is opened, and a folder is one commit."""
    arguments = {"name": "mine", "repo_type": "model", "token": None, "private": None, "revision": None}
    to = open_repository(**{**arguments, **settings}, setting="hub_model_id")
    upload = Upload(to, lambda head: folder_operations(folder), "all of it", num_bytes=1000, remedy="It is safe.")
    return Uploads().start(upload, is_awaited=True).result()


def assert_pushed_once(hub, info):
    [commit] = hub.model("me/mine").commits
    assert commit.files == FILES
    assert info.oid == commit.oid


# ---- Survived ----


@pytest.mark.parametrize("status", PASSING)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_status_that_passes_is_survived(hub, folder, naps, request_name, status):
    fault = hub.fail(REQUESTS[request_name], status=status, times=2)
    assert_pushed_once(hub, push(folder))
    assert fault.met == 2
    assert naps == [1, 2], "the same pauses every time, and nothing is asked again by two"


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_broken_connection_is_survived(hub, folder, request_name, kind):
    fault = hub.fail(REQUESTS[request_name], kind, times=1, seconds=0.05)
    assert_pushed_once(hub, push(folder))
    assert fault.met == 1


@pytest.mark.parametrize("status", [409, 412])
def test_somebody_elses_commit_is_built_upon(hub, folder, status):
    original = hub.meet

    def meet(request):
        if "/preupload/" in request and hub.model("me/mine").commits == [] and hub.asked("/preupload/"):
            hub.model("me/mine").put({"theirs.txt": b"theirs"})  # after we had looked
        return original(request)

    hub.meet = meet
    if status == 409:
        hub.fail(REQUESTS["commit"], status=409)
    push(folder)
    theirs, ours = hub.model("me/mine").commits
    assert theirs.message == "put there"
    assert ours.files == {**FILES, "theirs.txt": b"theirs"}


@pytest.mark.parametrize(("asked", "naps_taken"), [("0", [1]), ("7", [7]), ("300", [300]), ("soon", [1])])
def test_the_hub_is_given_the_time_that_it_asks_for(hub, folder, naps, asked, naps_taken):
    hub.fail(REQUESTS["commit"], status=429, headers={"Retry-After": asked})
    assert_pushed_once(hub, push(folder))
    assert naps == naps_taken


def test_a_file_in_parts_is_put_together(hub, folder):
    hub.part_size = 100
    hub.fail(r"PUT /lfs/\w+/3", status=500)
    hub.fail(r"POST /lfs/\w+\?", status=502)
    assert_pushed_once(hub, push(folder))


def test_faults_one_after_another_are_survived(hub, folder, naps):
    for name, pattern in REQUESTS.items():
        hub.fail(pattern, status=503)
        if name in RETRIED_BY_CLIENT:
            hub.fail(pattern, "drop")
    assert_pushed_once(hub, push(folder))
    assert all(fault.met == fault.times for fault in hub.faults)


# ---- Not survived ----


def assert_told(hub, folder, error, *parts):
    """In one line, without a secret; nothing is lost; and the same again pushes it."""
    text = str(error)
    assert "\n" not in text
    assert "Signature" not in text
    assert "hf_" not in text
    for part in parts:
        assert part in text
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    hub.faults.clear()
    hub.refused_lfs = None
    push(folder)
    assert hub.model("me/mine").files == FILES


SILENT = ("create", "announce", "file", "commit")
"""Requests of whose silence the fast tests are: of ours, of the client, at the start, in the middle and at the end."""


@pytest.mark.parametrize(
    ("request_name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] if kind == "hang" and name not in SILENT else [])
        for name in REQUESTS
        for kind in ("status", "drop", "hang", "reset")
    ],
)
def test_what_does_not_pass_is_told_after_six_attempts(hub, folder, request_name, kind):
    fault = hub.fail(REQUESTS[request_name], kind, times=1000)
    with pytest.raises(UploadError) as error:
        push(folder)
    assert fault.met == 6, "by the client or by us, not by both"
    begun = request_name in ("create", "announce")  # it is noticed when the repository is opened
    assert_told(hub, folder, error.value, "so nothing was begun" if begun else "It is safe.")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_an_answer_that_is_final_is_told_at_once(hub, folder, naps, request_name, status):
    fault = hub.fail(REQUESTS[request_name], status=status, times=1000)
    with pytest.raises(UploadError) as error:
        push(folder)
    assert fault.met == 1
    assert naps == []
    advice = {401: "hf auth login", 403: "The token may not write there"}.get(status, "out of order")
    assert_told(hub, folder, error.value, str(status), advice)


def test_files_that_the_storage_refuses_are_told(hub, folder):
    hub.refused_lfs = "storage limit reached"
    with pytest.raises(UploadError) as error:
        push(folder)
    assert_told(hub, folder, error.value, "storage limit reached", "It is safe.")


def test_an_hour_is_not_waited_for(hub, folder, naps):
    hub.fail(REQUESTS["commit"], status=429, headers={"Retry-After": "3600"}, message="come back in an hour")
    with pytest.raises(UploadError) as error:
        push(folder)
    assert naps == []
    assert_told(hub, folder, error.value, "429, come back in an hour")


def test_a_gateways_page_is_no_answer(hub, folder, naps):
    """With status 200, as a proxy or a hotel's network may give it."""
    fault = hub.fail(REQUESTS["card"], "lost-status", status=200, times=1000)
    with pytest.raises(UploadError, match="no JSON") as error:
        push(folder)
    assert (fault.met, naps) == (6, [1, 2, 4, 8, 16])
    assert_told(hub, folder, error.value, "It is safe.")


def test_a_server_that_is_not_there_is_told(hub, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UploadError, match="ConnectError") as error:
            push(folder)
    assert_told(hub, folder, error.value)


def test_a_process_without_a_network_is_told(hub, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UploadError, match="OfflineModeIsEnabled") as error:
            push(folder)
    assert_told(hub, folder, error.value)


def test_what_is_told_is_one_short_line_without_secrets():
    text = explain(
        OSError("no way\nto http://ann:secret@proxy:3128/a?X-Amz-Signature=5ec3e7&x=1 (Request ID: 7) " + 400 * "a")
    )
    assert text.startswith("OSError: no way to http://proxy:3128/a? aaaa")
    assert len(text) == 300


def test_a_token_that_is_withdrawn_meanwhile_is_told(hub, folder):
    hub.tokens["hf_short"] = "write"
    to = open_repository("mine", "model", "hf_short", None, None, "hub_model_id")
    del hub.tokens["hf_short"]
    upload = Upload(to, lambda head: folder_operations(folder), "all of it", num_bytes=1000, remedy="It is safe.")
    with pytest.raises(UploadError, match="expired") as error:
        Uploads().start(upload, is_awaited=True).result()
    assert_told(hub, folder, error.value, "It is safe.")


@pytest.mark.parametrize("exists", [False, True])
def test_a_token_that_only_reads_is_noticed_before_anything_is_begun(hub, folder, exists):
    if exists:
        hub.create("me/mine")
    with pytest.raises(UploadError) as error:
        push(folder, name="me/mine", token=READ_TOKEN)
    assert_told(hub, folder, error.value, "403", "so nothing was begun", "set another `hub_model_id`")


# ---- Time ----


def test_an_upload_is_given_up_in_time_and_does_not_come_late(hub, folder, monkeypatch):
    monkeypatch.setattr(uploads, "LEAST_TIME", 0.2)
    to = open_repository("mine", "model", None, None, None, "hub_model_id")
    hub.fail(REQUESTS["batch"], "slow", seconds=0.6)
    cleaned, pushes = [], Uploads()
    upload = Upload(
        to, lambda head: folder_operations(folder), "late", 1000, "It is safe.", cleanup=lambda: cleaned.append(1)
    )
    with pytest.raises(UploadError, match=r"did not end within 0\.21 seconds\. It is safe\."):
        pushes.start(upload, is_awaited=True).result()
    (folder / "tgo_config.json").write_bytes(b'{"new": 1}')
    later = Upload(to, lambda head: folder_operations(folder), "in time", 10**8, "It is safe.")
    pushes.start(later, is_awaited=True).result()
    for _ in range(100):  # until the late one has come to its end
        if cleaned:
            break
        hub.stopped.wait(0.05)
    assert cleaned == [1]
    assert [commit.message for commit in hub.model("me/mine").commits] == ["in time"]
    assert hub.model("me/mine").files["tgo_config.json"] == b'{"new": 1}'


def test_uploads_come_in_order_and_one_that_fails_does_not_stop_the_next(hub, folder, caplog):
    to = open_repository("mine", "model", None, None, None, "hub_model_id")
    hub.fail(REQUESTS["commit"], "slow", seconds=0.2)
    pushes = Uploads()

    def upload(name, status=None):
        def operations(head):
            (folder / "tgo_config.json").write_text(f"{name}, {status}")
            if status is not None:
                hub.fail(REQUESTS["commit"], status=status)
            return folder_operations(folder, path_in_repo=name)

        pushes.start(Upload(to, operations, name, 1000, f"{name} is safe.", target=name))

    for name, status in (("a", None), ("b", 403), ("c", None), ("c", 404), ("b", None)):
        upload(name, status)
    assert pushes.is_busy
    pushes.finish()
    assert [commit.message for commit in hub.model("me/mine").commits] == ["a", "c", "b"]
    told = [record.getMessage() for record in caplog.records if record.name == "tgo_trl.hub.uploads"]
    assert [re.search(r"(\d{3}), .* (\w is safe)", text).groups() for text in told] == [
        ("403", "b is safe"), ("404", "c is safe"),
    ]  # fmt: skip
    assert list(pushes.failures) == ["c"], "a later upload made up for b"


def test_what_failed_is_noted_when_the_wait_for_it_ends(hub, folder, monkeypatch):
    """A future wakes those that wait before it calls back: a run that looked in between would end well."""
    note, woken = Uploads._note, threading.Event()

    def note_late(self, *given):
        woken.wait(0.3)
        note(self, *given)

    monkeypatch.setattr(Uploads, "_note", note_late)
    hub.fail(REQUESTS["commit"], status=403)
    to = open_repository("mine", "model", None, None, None, "hub_model_id")
    pushes = Uploads()
    pushes.start(Upload(to, lambda head: folder_operations(folder), "all", 1000, "It is safe.", target="adapter"))
    pushes.finish()
    assert list(pushes.failures) == ["adapter"]


def test_a_users_own_bound_on_requests_is_kept(hub, folder):
    import huggingface_hub
    from huggingface_hub.utils import httpx

    real = huggingface_hub.utils._http.default_client_factory
    huggingface_hub.set_client_factory(lambda: httpx.Client(timeout=7.0))
    try:
        push(folder)
        assert huggingface_hub.get_session().timeout.read == 7.0
    finally:
        huggingface_hub.set_client_factory(real)
    push(folder)
    assert huggingface_hub.get_session().timeout.read == 120.0
