"""mgkit: reproduce, use and extend MultiGrain (Berman et al. 2019, arXiv 1902.05509).

One network and one embedding for image classification, instance retrieval and copy detection.

The method, in reading order:

    config       the parameters of each stage: types, ranges, defaults
    transforms   training augmentations; evaluation crops
    samplers     repeated augmentation; batches of images of one shape
    pooling      GeM and L2 normalisation
    model        backbone -> GeM -> (whitening) -> embedding and logits
    losses       distance-weighted triplets, margin loss, joint loss
    training     one step of joint training: batches, optimizer, objective         (01)
    checkpoints  safe loading, atomic saving; the released files by name
    features     images -> feature maps -> descriptors
    finetune     p* by SGD on p alone; its rival FixRes; accuracy against p        (02)
    whitening    PCA whitening, folded into the classifier                         (03)
    exportable   parts of backbones in a form that torch.export can follow
    export       the network as an ONNX file or an exported program, to run without the kit
    metrics      accuracy, average precision, UKBench score, confidence intervals  (04, 05)

Around it, each folder importing only from those above it (the method comes after benchmarks):

    machine      device, processes, progress bars, files, downloads
    data         decoding, folder layouts, lists of images, loaders
    mini         generates the embedded dataset, and a set of photographs that come with packages
    backbones    backbone networks by name
    benchmarks   the published retrieval sets: layouts, ground truth, download, checks
    retrieval    exact and approximate search; re-ranking; evaluation protocols; descriptors in files
    engine       runs and their folders, launching, the training loop, resuming, stored features
    stages       what notebooks 01 to 05 run: the method on data, with results in outputs/
    descriptors  the command that leaves descriptors in files
    explore      figures, interactive explorers, tables and source code in notebooks
    photos       search in a folder of photos                                      (06)
    claims       trainings with and without what the paper claims to help, compared (07)
    board        the paper's results beside those of the runs so far
    demo         `make demo`, `make real`: run the notebooks, check claims, compare with the reference runs

`__main__` is what each of the processes runs that engine/launch.py starts.
"""

import os

import lazy_loader

# A thread that waits for others sleeps instead of spinning. Beside other work on the same cores, passes and
# training steps take 1.5 to 2 times as long with threads that spin; alone, passes gain nothing by it. OpenMP
# reads this once, when torch, faiss or scikit-learn load it, so import mgkit before them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# At first use: processes that only draw or decode pictures need no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"checkpoints": ["load_checkpoint", "load_released"], "model": ["get_multigrain"]}
)
