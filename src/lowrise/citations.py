"""The papers of the methods, and their BibTeX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Citation:
    """One source, as its title page has it."""

    key: str
    title: str
    authors: tuple[str, ...]
    """Family name first where a given name is known; "others" at the end stands for names left out."""
    year: int
    """Of the first version."""
    arxiv: str = ""
    """Identifier, without a version."""
    venue: str = ""
    """Conference and its year ("ICLR 2025"), where the paper appeared at one."""
    url: str = ""
    """Where there is no arXiv identifier."""

    def bibtex(self) -> str:
        """One entry: @inproceedings with a venue, whose year it then has, else @misc."""
        year = self.venue[-4:] or str(self.year)
        fields = {"title": f"{{{self.title}}}", "author": " and ".join(self.authors), "year": year}
        if self.venue:
            fields["booktitle"] = self.venue
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"}
        address = f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url
        lines = [f"  {name} = {{{value}}}," for name, value in (fields | {"url": address}).items()]
        kind = "inproceedings" if self.venue else "misc"
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


_ENTRIES = (
    Citation(
        key="loshchilov2019decoupled",
        title="Decoupled Weight Decay Regularization",
        authors=("Loshchilov, Ilya", "Hutter, Frank"),
        year=2017,
        arxiv="1711.05101",
        venue="ICLR 2019",
    ),
    Citation(
        key="jordan2024muon",
        title="Muon: An optimizer for hidden layers in neural networks",
        authors=("Jordan, Keller", "others"),
        year=2024,
        url="https://github.com/KellerJordan/Muon",
    ),
    Citation(
        key="liu2025muon",
        title="Muon is Scalable for LLM Training",
        authors=("Liu, Jingyuan", "others"),
        year=2025,
        arxiv="2502.16982",
    ),
    Citation(
        key="kamalakara2022exploring",
        title="Exploring Low Rank Training of Deep Neural Networks",
        authors=("Kamalakara, Siddhartha Rao", "others"),
        year=2022,
        arxiv="2209.13569",
    ),
    Citation(
        key="mo2025parameter",
        title="Parameter and Memory Efficient Pretraining via Low-rank Riemannian Optimization",
        authors=("Mo, Zhanfeng", "Huang, Long-Kai", "Pan, Sinno Jialin"),
        year=2025,
        venue="ICLR 2025",
        url="https://openreview.net/forum?id=i0zzO7Hslk",
    ),
    Citation(
        key="janson2026stabilizing",
        title="Stabilizing Native Low-Rank LLM Pretraining",
        authors=("Janson, Paul", "Oyallon, Edouard", "Belilovsky, Eugene"),
        year=2026,
        arxiv="2602.12429",
        venue="ICML 2026",
    ),
    Citation(
        key="cesista2026spectral",
        title="LoRA-Muon: Spectral Steepest Descent on the Low-Rank Manifold",
        authors=("Cesista, Franz Louis", "Crowson, Katherine", "Simal, Cédric", "Biderman, Stella"),
        year=2026,
        arxiv="2606.12921",
    ),
    Citation(
        key="liu2025cola",
        title="CoLA: Compute-Efficient Pre-Training of LLMs via Low-Rank Activation",
        authors=("Liu, Ziyue", "others"),
        year=2025,
        arxiv="2502.10940",
        venue="EMNLP 2025",
    ),
    Citation(
        key="wei2024building",
        title="Building on Efficient Foundations: Effectively Training LLMs with Structured Feedforward "
        "Layers",
        authors=("Wei, Xiuying", "Moalla, Skander", "Pascanu, Razvan", "Gulcehre, Caglar"),
        year=2024,
        arxiv="2406.16450",
        venue="NeurIPS 2024",
    ),
    Citation(
        key="hu2021lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors=("Hu, Edward J.", "others"),
        year=2021,
        arxiv="2106.09685",
        venue="ICLR 2022",
    ),
    Citation(
        key="lialin2023relora",
        title="ReLoRA: High-Rank Training Through Low-Rank Updates",
        authors=("Lialin, Vladislav", "Shivagunde, Namrata", "Muckatira, Sherin", "Rumshisky, Anna"),
        year=2023,
        arxiv="2307.05695",
    ),
    Citation(
        key="han2024sltrain",
        title="SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
        authors=("Han, Andi", "others"),
        year=2024,
        arxiv="2406.02214",
        venue="NeurIPS 2024",
    ),
    Citation(
        key="kamali2026efficient",
        title="Efficient Pre-Training of LLMs through Truncated SVD Layers",
        authors=("Kamali", "Schweighofer", "Shahrzad", "Francon", "Hodjat", "Miikkulainen"),
        year=2026,
        arxiv="2605.28573",
    ),
    Citation(
        key="zhao2024galore",
        title="GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        authors=(
            "Zhao, Jiawei",
            "Zhang, Zhenyu",
            "Chen, Beidi",
            "Wang, Zhangyang",
            "Anandkumar, Anima",
            "Tian, Yuandong",
        ),
        year=2024,
        arxiv="2403.03507",
        venue="ICML 2024",
    ),
    Citation(
        key="chen2024fira",
        title="Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
        authors=("Chen, Xi", "others"),
        year=2024,
        arxiv="2410.01623",
    ),
    Citation(
        key="zhu2024apollo",
        title="APOLLO: SGD-like Memory, AdamW-level Performance",
        authors=("Zhu, Hanqing", "others"),
        year=2024,
        arxiv="2412.05270",
        venue="MLSys 2025",
    ),
    Citation(
        key="wen2025breaking",
        title="Breaking Memory Limits: Gradient Wavelet Transform Enhances LLMs Training",
        authors=("Wen, Ziqing", "others"),
        year=2025,
        arxiv="2501.07237",
    ),
    Citation(
        key="ma2024swan",
        title="SWAN: SGD with Normalization and Whitening Enables Stateless LLM Training",
        authors=("Ma, Chao", "Gong, Wenbo", "Scetbon, Meyer", "Meeds, Edward"),
        year=2024,
        arxiv="2412.13148",
        venue="ICML 2025",
    ),
    Citation(
        key="scetbon2025gradient",
        title="Gradient Multi-Normalization for Stateless and Scalable LLM Training",
        authors=("Scetbon, Meyer", "Ma, Chao", "Gong, Wenbo", "Meeds, Edward"),
        year=2025,
        arxiv="2502.06742",
        venue="NeurIPS 2025",
    ),
    Citation(
        key="glentis2025minimalist",
        title="A Minimalist Optimizer Design for LLM Pretraining",
        authors=("Glentis, Athanasios", "Li, Jiaxiang", "Han, Andi", "Hong, Mingyi"),
        year=2025,
        arxiv="2506.16659",
    ),
    Citation(
        key="li2025normuon",
        title="NorMuon: Making Muon more efficient and scalable",
        authors=("Li, Zichong", "Liu, Liming", "Liang, Chen", "Chen, Weizhu", "Zhao, Tuo"),
        year=2025,
        arxiv="2510.05491",
    ),
    Citation(
        key="ahn2025simple",
        title="Dion2: A Simple Method to Shrink Matrix in Muon",
        authors=("Ahn, Kwangjun", "Amsel, Noah", "Langford, John"),
        year=2025,
        arxiv="2512.16928",
    ),
    Citation(
        key="huang2025spam",
        title="Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam",
        authors=(
            "Huang, Tianjin",
            "Hu, Haotian",
            "Zhang, Zhenyu",
            "Jin, Gaojie",
            "Li, Xiang",
            "Shen, Li",
            "Chen, Tianlong",
            "Liu, Lu",
            "Wen, Qingsong",
            "Wang, Zhangyang",
            "Liu, Shiwei",
        ),
        year=2025,
        arxiv="2502.17055",
    ),
    Citation(
        key="lian2026sinkgd",
        title="SinkGD width transfer, spectral norm, MD sphere + fused Triton kernels",
        authors=("Lian, Wing", "others"),
        year=2026,
        url="https://github.com/axolotl-ai-cloud/axolotl/pull/3785",
    ),
    Citation(
        key="wen2026fantastic",
        title="Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization",
        authors=("Wen, Kaiyue", "Dang, Xingyu", "Lyu, Kaifeng", "Ma, Tengyu", "Liang, Percy"),
        year=2026,
        arxiv="2606.16899",
    ),
    Citation(
        key="wang2026dlr",
        title="DLR: Zero-Inference-Cost Latent Residuals for Low-Rank Pre-Training",
        authors=("Wang, Dong", "Tang, Wenwu", "Cheng, Yun", "Saukh, Olga"),
        year=2026,
        arxiv="2606.28932",
    ),
)

CITATIONS: dict[str, Citation] = {entry.key: entry for entry in _ENTRIES}
"""Key -> source."""
