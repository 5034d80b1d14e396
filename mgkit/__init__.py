"""mgkit: reproduce, use and extend MultiGrain (Berman et al. 2019, arXiv 1902.05509).

One network, one embedding, three uses: the class of an image, other pictures of the same thing, and copies.
The modules in the order in which the method reads:

    config          one frozen dataclass a stage: what may be set, in which range
    files           the project's root; files written whole or not at all
    mini            draws the embedded dataset
    index           the images below a folder, found once and remembered
    imagenet        ImageNet's folder names; the classes of its flat validation images
    datasets        lists of images, with class and instance; loaders
    annotations     ground truth in text files: rotations, matching pairs, groups
    revisited       ground truth in a pickle, of which nothing is run
    ground_truth    a retrieval set: images, queries, database, what is right
    benchmark_sets  Holidays, UKBench, Copydays, revisited Oxford and Paris, DISC
    retrieval_sets  those that a folder holds, or else the user's own images
    transforms      training augmentations; evaluation crops
    samplers        repeated augmentation; batches of one shape
    toy_svm         what it does to SGD, on points of a plane; figure A.3 (00)
    nasnet          NASNet-A-Mobile and PNASNet-5-Large, as tables of cells
    backbones       a name -> a network up to its last feature map
    pooling         GeM, L2 normalisation
    model           backbone -> GeM -> (whitening) -> embedding and logits
    losses          distance-weighted triplets, margin loss, joint loss
    hardware        device, precision, memory layout
    frozen          a backbone for passes without gradient: the same maps, sooner
    progress        bars in a browser, lines in a log
    distributed     several processes as one: ranks, sums, gathered rows, synchronised batch norm
    experiment      a run's folder under outputs/
    launch          from a notebook to worker processes and back
    download        files from the network: resumed, checked, whole
    archives        extracted safely: whole, with hashes, nothing overwritten
    benchmarks      the published sets: fetched, checked for what is missing
    checkpoints     safe load, atomic save; the released files by name
    objective       what a step of training minimises and tells, alone or as one of several
    monitor         what a training leaves to watch it by
    snapshots       its checkpoints on disk, the last good ones kept
    resume          where it starts: anew, or from its last snapshot
    training        its epochs and steps
    rehearsal       a dry run: what a training would cost
    train           the joint training, started and found again         (01)
    balance         which loss pulls the embedding, for several λ; figure 5
    embed           images -> feature maps -> descriptors, in one pass
    store           pooled features on disk: made once, continued after a kill, reused
    growing         the same for a folder that grows: only what is new is embedded
    finetune        p* by SGD, and accuracy as a function of p          (02)
    whitening       PCA whitening, folded into the classifier           (03)
    descriptors     whitened, reduced, multi-scale descriptors
    search          nearest neighbours, exact
    ann             approximate ones: faiss indices made and compared
    metrics         accuracy, average precision (by query and pooled), UKBench score, bootstrap intervals
    protocols       a set and its descriptors -> measures, intervals, neighbours
    evaluate        top-1/top-5                                         (04)
    retrieval       every set with every kind of descriptor; figure 4   (05)
    tables          its results as text
    repooling       feature maps held in memory: any p at once; regions that match
    browse          what a picture finds, also one that a person brings along
    toy_batch       a small batch: its pairs, losses, and pulls for any N and λ
    photo_folder    a person's folders of pictures: found, decoded in bounded memory
    duplicates      near-duplicates above a threshold that is learned from edited copies and strangers
    photos          one's own pictures searched: near-duplicates, more like this, classes (06)
    report          what was found as one HTML file
    worker          what each of several processes runs, for every stage
    plots           every figure of the notebooks, but for
    photo_plots     those of 06
    stills          what the explorers show, as figures
    widgets         the explorers: p, queries, matching regions, λ and N, live
    board           the paper's figures beside those of the runs so far
    reference       the run that is in git, and what another is held against
    demo            runs the notebooks, checks the method's claims, compares with the reference
"""

import lazy_loader

# At first use: processes that only draw or decode pictures need no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"checkpoints": ["load_checkpoint", "load_released"], "model": ["get_multigrain"]},
)
