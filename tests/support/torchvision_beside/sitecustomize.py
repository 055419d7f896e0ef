"""On the path of a process that needs torchvision's Python half beside a torch it was not compiled for.

A package index has torchvision for one build of torch, and its compiled operators load beside no other: importing it ends
with "operator torchvision::nms does not exist". What image processors need of it is not compiled. So those it looks
for are declared here, before anybody imports it, and do not work. Python runs a ``sitecustomize`` in every process, also in
those that vLLM starts.
"""

import importlib.abc
import sys


class _Declared(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is imported for the first time, and steps aside."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        self.library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.modules["_torchvision_operators"] = self  # type: ignore[assignment]  # a library lives as long as this object


sys.meta_path.insert(0, _Declared())
