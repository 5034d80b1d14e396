"""The published benchmarks as folders of tiny or empty files, in each real layout."""

import pickle

import numpy as np
from scipy.io import savemat
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


# --- Stanford Online Products

SOP = {  # of the test list: path -> class
    "bicycle_final/111085122871_0.JPG": 11319,
    "bicycle_final/111085122871_1.JPG": 11319,
    "toaster_final/251952414262_2.JPG": 11320,
    "bicycle_final/111085122871_3.JPG": 11319,
    "toaster_final/251952414262_7.JPG": 11320,
}


def sop_tree(root, rows=SOP):
    top = root / "Stanford_Online_Products"
    write_empty(top, *SOP, "sofa_final/171106087023_0.JPG", "Ebay_train.txt", "bicycle_final.txt", "README")
    lines = [f"{59552 + k} {number} 1 {path}\n" for k, (path, number) in enumerate(rows.items())]
    (top / "Ebay_test.txt").write_text("image_id class_id super_class_id path\n" + "".join(lines))
    return root


# --- CUB-200-2011

CUB = {  # path -> class
    "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg": 1,
    "101.White_Pelican/White_Pelican_0006_97.jpg": 101,
    "101.White_Pelican/White_Pelican_0007_97.jpg": 101,
    "100.Brown_Pelican/Brown_Pelican_0001_1.jpg": 100,
    "200.Common_Yellowthroat/Common_Yellowthroat_0003_190521.jpg": 200,
    "200.Common_Yellowthroat/Common_Yellowthroat_0004_1.jpg": 200,
}


def cub_tree(root, rows=CUB):
    top = root / "CUB_200_2011"
    write_empty(top, *[f"images/{path}" for path in rows], "README", "bounding_boxes.txt", "parts/parts.txt")
    numbered = list(enumerate(rows.items(), start=1))
    (top / "images.txt").write_text("".join(f"{k} {path}\n" for k, (path, _) in numbered))
    (top / "image_class_labels.txt").write_text("".join(f"{k} {number}\n" for k, (_, number) in numbered))
    return root


# --- Stanford Cars

CARS = {"000001": 1, "000002": 98, "000003": 99, "000004": 99, "000005": 196, "000006": 196}  # name -> class
CARS_TRAIN, CARS_TEST = {"00001": 14, "00002": 99}, {"00001": 99, "00002": 196, "00003": 196}


def write_cars(path, field, rows):
    """Write a list of Stanford Cars: one row of records, as in the original."""
    fields = (field, "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")
    records = [(name, 1, 2, 30, 40, number) for name, number in rows.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": np.array([records], dtype=[(name, object) for name in fields])})  # [1,N]
    return path


def cars_tree(root):
    rows = {f"car_ims/{name}.jpg": number for name, number in CARS.items()}
    write_cars(write_empty(root, *rows) / "cars_annos.mat", "relative_im_path", rows)
    return root


def cars_tree_in_parts(root, *, doubled=False, labels="cars_test_annos_withlabels.mat"):
    for part, rows in (("cars_train", CARS_TRAIN), ("cars_test", CARS_TEST)):
        folder = root / part / part if doubled else root / part
        write_empty(folder, *[f"{name}.jpg" for name in rows])
    write_cars(root / "devkit" / "cars_train_annos.mat", "fname", with_suffix(CARS_TRAIN))
    write_cars(root / labels, "fname", with_suffix(CARS_TEST))
    return root


def with_suffix(rows):
    return {f"{name}.jpg": number for name, number in rows.items()}


# --- In-Shop

INSHOP = {  # image -> item, status
    "img/WOMEN/Dresses/id_00000002/02_1_front.jpg": ("id_00000002", "train"),
    "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg": ("id_00000001", "query"),
    "img/WOMEN/Blouses_Shirts/id_00000001/02_2_side.jpg": ("id_00000001", "gallery"),
    "img/MEN/Denim/id_00000080/01_1_front.jpg": ("id_00000080", "gallery"),
    "img/MEN/Denim/id_00000080/01_2_side.jpg": ("id_00000080", "gallery"),
    "img/MEN/Denim/id_00000080/01_7_additional.jpg": ("id_00000080", "query"),
    "img/WOMEN/Blouses_Shirts/id_00000001/02_4_full.jpg": ("id_00000001", "query"),
}


def inshop_tree(root, *, top="", rows=INSHOP, number=None):
    write_empty(root, *[f"{top}{name}" for name in rows], "Anno/list_bbox_inshop.txt", "README.txt")
    lines = [f"{name:70s} {item} {status}\n" for name, (item, status) in rows.items()]
    (root / "Eval").mkdir()
    head = f"{len(rows) if number is None else number}\nimage_name item_id evaluation_status\n"
    (root / "Eval" / "list_eval_partition.txt").write_text(head + "".join(lines))
    return root


# --- Google Landmarks v2

LANDMARKS = [f"{number:016x}" for number in (0x0123 << 48, 0x0124 << 48, 0xABC << 52, 0xABC1 << 48)]
LANDMARK_QUERIES = [f"{number:016x}" for number in (1, 0xF << 60, 0xF1 << 56, 2)]
SOLUTION = (  # a query that is ignored has no positives; some of the test images are not listed
    ("id", "images", "Usage"),
    (LANDMARK_QUERIES[0], f"{LANDMARKS[2]} {LANDMARKS[0]}", "Private"),
    (LANDMARK_QUERIES[1], "None", "Ignored"),
    (LANDMARK_QUERIES[2], LANDMARKS[3], "Public"),
)


def landmark(inside, name):
    return f"{inside}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


def gldv2_tree(root, rows=SOLUTION):
    write_empty(root, *[landmark("index", name) for name in LANDMARKS])
    write_empty(root, *[landmark("test", name) for name in LANDMARK_QUERIES])
    (root / "retrieval_solution_v2.1.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    return root


# --- INSTRE

INSTRE_IMAGES = [
    "INSTRE-S1/01a_canada_book/001.jpg", "INSTRE-S1/01b_box/001.jpg", "INSTRE-M/01/001.jpg",
    "INSTRE-S2/01_tower/001.jpg", "INSTRE-S2/01_tower/002.jpg",
]  # fmt: skip
INSTRE_QUERIES = ["INSTRE-S1/01a_canada_book/013.jpg", "INSTRE-S2/01_tower/062.jpg", "INSTRE-M/50/107.jpg"]
INSTRE = {  # positives are numbered from 1
    "imlist": INSTRE_IMAGES,
    "qimlist": INSTRE_QUERIES,
    "gnd": [([3, 1], [3, 1, 12, 14]), ([4, 5], [0, 0, 24, 16]), ([3], [2, 2, 10, 9])],
}


def write_instre(path, content=INSTRE):
    """Write the ground truth: rows of cells and of records, as in the original."""
    cells = {key: np.array([content[key]], dtype=object) for key in ("imlist", "qimlist")}  # [1,N], [1,Q]
    records = np.empty((1, len(content["gnd"])), dtype=[("ok", object), ("bbx", object)])
    for k, (positives, box) in enumerate(content["gnd"]):
        records[0, k] = np.array([positives], dtype=np.float64), np.array([box], dtype=np.float64)
    savemat(path, cells | {"gnd": records})
    return path


def instre_tree(root, content=INSTRE):
    write_tree(root, *INSTRE_IMAGES, *INSTRE_QUERIES)
    write_empty(root, *[name.replace(".jpg", ".txt") for name in INSTRE_IMAGES])
    write_instre(root / "gnd_instre.mat", content)
    return root


# --- ILIAS

ILIAS = [
    "bold_bimp_000/query/Q000_00.jpg", "bold_bimp_000/pos/P000_00.jpg", "bold_bimp_000/pos/P000_01.jpg",
    "zippy_zootlenibble_999/query/Q999_00.jpg", "zippy_zootlenibble_999/query/Q999_01.jpg",
    "zippy_zootlenibble_999/pos/P999_00.jpg",
]  # fmt: skip


def ilias_tree(root, *mini, names=ILIAS):
    write_empty(root / "ilias_core", *names, *[name.replace(".jpg", "_bbox.txt") for name in names])
    write_empty(root / "ilias_core", "bold_bimp_000/query/T000.txt")
    return write_empty(root, *[f"mini/{name}" for name in mini])
