"""`training/sft.py`, which at the end also compares the weights of all processes; run by `accelerate launch`."""

import hashlib

from multimood.training import sft


class ComparingTrainer(sft.TurnTrainer):
    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        digest = hashlib.sha256()
        for parameter in self.accelerator.unwrap_model(self.model).parameters():
            digest.update(parameter.detach().numpy().tobytes())
        print(f"weights {digest.hexdigest()} in process {self.args.process_index} of {self.args.world_size}")
        return result


if __name__ == "__main__":
    sft.TurnTrainer = ComparingTrainer
    sft.main()
