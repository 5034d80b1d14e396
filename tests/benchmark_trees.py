"""The published benchmarks as folders of tiny or empty files, in each real layout."""

import pickle

from support import answers, file_name, write_empty, write_tree

HOLIDAYS = ["100000", "100001", "100002", "100100", "100101", "149900", "149901", "149902", "149903"]


HOLIDAYS_ANSWERS = {
    "100000.jpg": ["100001.jpg", "100002.jpg"],
    "100100.jpg": ["100101.jpg"],
    "149900.jpg": ["149901.jpg", "149902.jpg", "149903.jpg"],
}


def holidays_tree(root, numbers=HOLIDAYS):
    return write_tree(root, *[f"jpg/{number}.jpg" for number in numbers])


def ukbench_files(objects):
    return [f"full/ukbench{4 * number + k:05d}.jpg" for number in objects for k in range(4)]


COPYDAYS = ["original/200000.jpg", "original/200100.jpg", "original/215600.jpg"]


LEVELS = [
    "crops/10/200000.jpg", "crops/10/200100.jpg", "crops/10/215600.jpg",
    "crops/80/200100.jpg", "crops/9/215600.jpg",
    "jpegqual/3/200000.jpg", "jpegqual/15/200100.jpg",
]  # fmt: skip
STRONG = ["strong/200001.jpg", "strong/200002.jpg", "strong/200003.jpg", "strong/215601.jpg"]


# --- Upright Holidays


def upright(root, text):
    root.mkdir(parents=True, exist_ok=True)
    (root / "holidays-rotate.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


# --- Revisited Oxford and Paris

REVISITED = {
    "imlist": [
        "all_souls_000001",
        "magdalen_000002",
        "christ_church_000003",
        "ashmolean_000004",
        "keble_000005",
    ],
    "qimlist": ["all_souls_000013", "keble_000055", "radcliffe_000777"],
    "gnd": [
        {"bbx": [3.4, 1.0, 11.6, 13.5], "easy": [3, 0], "hard": [1], "junk": [4]},
        {"bbx": (0.0, 0.0, 24.0, 16.0), "easy": [], "hard": [2, 4], "junk": []},
        {"bbx": [0, 2, 10, 10], "easy": [], "hard": [], "junk": [0]},
    ],
}


REVISITED_FILES = [
    f"jpg/{name}.jpg" for name in (*REVISITED["imlist"], *REVISITED["qimlist"], "worcester_000999")
]


def write_gnd(path, content=REVISITED):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path.parent


def revisited_tree(root, name="roxford5k"):
    return write_gnd(write_tree(root, *REVISITED_FILES) / f"gnd_{name}.pkl")


def junk(retrieval_set):
    return [{file_name(retrieval_set, i) for i in each} for each in retrieval_set.junk]


def jpg(*numbers):
    return {f"{REVISITED['imlist'][n]}.jpg" for n in numbers}


# --- DISC

QUERIES = [f"queries/Q0000{n}.jpg" for n in range(5)]


REFERENCES = [f"references/R00{n}000.jpg" for n in range(4)]


def disc_tree(root, text, *files):
    write_empty(root, *QUERIES, *REFERENCES, *files)
    (root / "public_ground_truth.csv").write_text(text)
    return root


def disc_answers(retrieval_set):
    return {query: [int(answer[3]) for answer in found] for query, found in answers(retrieval_set).items()}


MATCHES = "Q00001,R003000\nQ00003,R000000\nQ00003,R002000\nQ00003,R000000\n"
