"""Transfer of a trained classifier to other classes, with a new last layer."""

from lustral.networks.builders import builders
from lustral.networks.classifier import Classifier
from lustral.networks.weights import architecture, load_classifier


def with_new_head(weights: str, num_classes: int, image_size: None | int = None) -> Classifier:
    """The classifier of a weights file with a random last layer for ``num_classes`` others (use as a ``class_path``).

    It counts as untrained until that layer has been trained (option ``trainable`` of `ClassifierTraining`).

    Args:
        weights: a file written by `save_network`, such as an imported ImageNet classifier.
        num_classes: number of classes of the new last layer.
        image_size: height and width of its images in pixels; None keeps the file's.
    """
    trained = load_classifier(weights)
    changes = {"num_classes": num_classes} | ({} if image_size is None else {"image_size": image_size})
    network = builders()[type(trained).__name__](**architecture(trained)["arguments"] | changes)
    assert isinstance(network, Classifier)
    head = next(name for name, module in network.named_modules() if module is network.last_layer)
    random = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(f"{head}.")}
    network.load_state_dict(trained.state_dict() | random)
    return network
