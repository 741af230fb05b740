"""What several tests need: the place of real fixtures, small COCO trees written on the spot, a browser for pages."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from dataengine.builder import Context, IndexReport, Outcome, Part, make_context
from dataengine.records import Account, Bad
from dataengine.sample import Sample
from dataengine.store.files import Folder

os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".numba"))  # a folder that tests can copy
os.environ["HF_HUB_OFFLINE"] = "1"  # what is not there is told at once, and not after several tries
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

FIXTURES = Path(os.environ.get("DATAENGINE_FIXTURES", Path(__file__).parents[1].parent / "shared" / "fixtures"))
SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]


@pytest.fixture
def fixtures() -> Path:
    """Published data; tests that need it skip where it is absent."""
    if not (FIXTURES / "coco").is_dir():
        pytest.skip(f"needs the published fixtures at {FIXTURES}")
    return FIXTURES


def jpeg(height: int = 24, width: int = 32, mode: str = "RGB", seed: int = 0) -> bytes:
    """A small picture of noise."""
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def make_jpeg():
    """The function `jpeg`, which gives the bytes of a small picture."""
    return jpeg


class CocoTree:
    """A COCO tree under construction: pictures of 32 x 24 px, an instances file that can be edited and saved."""

    def __init__(self, root: Path, num_images: int, split: str = "train") -> None:
        self.root, self.split = root, split
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / split).mkdir(exist_ok=True)
        self.images = [{"id": n, "file_name": f"{n}.jpg", "height": 24, "width": 32} for n in range(1, num_images + 1)]
        self.annotations = [
            {
                "id": 10 * n + k,
                "image_id": n,
                "category_id": 1 + (n + k) % 3,
                "iscrowd": 0,
                "segmentation": [[x + 9 * k for x in (2, 2)] + [10 + 9 * k, 2, 10 + 9 * k, 10, 2 + 9 * k, 10 + n % 5]],
            }
            for n in range(1, num_images + 1)
            for k in range(2)
        ]
        self.categories = [{"id": c, "name": f"kind-{c}"} for c in (1, 2, 3)]
        for image in self.images:
            (root / split / image["file_name"]).write_bytes(jpeg(seed=image["id"]))
        self.save()

    @property
    def file(self) -> Path:
        return self.root / "annotations" / f"instances_{self.split}.json"

    def save(self) -> Path:
        document = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        self.file.write_text(json.dumps(document))
        return self.file


@pytest.fixture
def coco_tree(tmp_path):
    """Makes `CocoTree`s: `coco_tree(num_images)`."""
    made = 0

    def make(num_images: int = 6, split: str = "train") -> CocoTree:
        nonlocal made
        made += 1
        return CocoTree(tmp_path / f"coco{made}", num_images, split)

    return make


@dataclass
class Reading:
    """What a builder made of one split."""

    part: Part
    report: IndexReport
    context: Context
    index: Folder
    outcomes: list[Outcome]

    @property
    def samples(self) -> list[Sample]:
        return [sample for outcome in self.outcomes for sample in outcome.samples]

    @property
    def bad(self) -> list[Bad]:
        return [*self.report.bad, *(bad for outcome in self.outcomes for bad in outcome.bad)]

    @property
    def account(self) -> Account:
        """Of everything; checked to add up, row by row."""
        total = Account()
        for name, account in [("index", self.report.account), *((o.group, o.account) for o in self.outcomes)]:
            account.check(name)
            total.add(account)
        return total


@pytest.fixture
def read_source(tmp_path):
    """Reads a source as a build does: `read_source(builder, root, task)` gives a `Reading` for each split."""
    made = 0

    def read(builder, root, task, *, files=None, splits=(), seed=0, **options) -> list[Reading]:
        nonlocal made
        parsed = builder.parse_options(task, options)
        readings = []
        for part in builder.locate(None if root is None else str(root), files or {}, splits, parsed):
            made += 1
            target = tmp_path / f"index{made}.arrow"
            report = builder.index(part, parsed, target)
            context = make_context(builder, builder.NAME, task, part, report, parsed, seed)
            index = Folder(str(target))
            outcomes = list(builder.read(context, index, 0, report.rows))
            readings.append(Reading(part, report, context, index, outcomes))
        return readings

    return read


@pytest.fixture(scope="session")
def ray_session():
    """One Ray session on this machine for all tests that need one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 API on loopback; the process's environment points to it."""
    server_module = pytest.importorskip("moto.server", reason="needs moto's S3 server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    yield settings["AWS_ENDPOINT_URL"]
    server.stop()
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


@pytest.fixture
def s3_bucket(s3_server, request) -> str:
    """URI of a fresh bucket."""
    import boto3

    name = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}-{os.getpid()}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"


# --- a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium with an empty profile."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium (Debian's package chromium, or CHROMIUM=/its/path)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Watched:
    """A page, and what it did that it should not have done. requests: every URL that it asked for."""

    page: object
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def watch(browser):
    """Opens pages: `watch(width=1280, height=900, scheme="light")`; errors and dialogs of a page fail the test."""
    opened: list[Watched] = []

    def make(width: int = 1280, height: int = 900, scheme: str = "light") -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        watched = Watched(context.new_page())
        page = watched.page

        def refuse(dialog) -> None:
            watched.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", refuse)
        page.on("pageerror", lambda error: watched.problems.append(f"error: {error}"))
        page.on(
            "console", lambda line: watched.problems.append(f"console: {line.text}") if line.type == "error" else None
        )
        page.on("request", lambda request: watched.requests.append(request.url))
        opened.append(watched)
        return watched

    yield make
    for watched in opened:
        watched.page.context.close()
        assert not watched.problems
