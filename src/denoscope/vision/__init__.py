"""Vision: everything that looks at pictures.

Photographs are read (`photographs`, `profiles`), noised into sequences of frames (`frames`, `noising`), and prepared
for a network (`preprocessing`). Classifiers name pictures (`classifiers`, with `labels`, `networks`, `pretrained` and
`imagenet`; `incremental` makes the offline one faster). Encoders turn pictures into features (`encoders`), and
`similarity` compares pictures locally.
"""
