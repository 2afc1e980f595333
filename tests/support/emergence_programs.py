"""Replacements of the program that traces a text's emergence, which needs torch."""

# Answers as the real one does, with its request in the first message.
ANSWERS = """
import json, sys
from whence.v1 import training_pb2 as pb
from whence_server.lineage.framing import frame_message
asked = json.loads(sys.stdin.readline())
def send(**result):
    sys.stdout.buffer.write(frame_message(pb.TraceEmergenceResponse(**result).SerializeToString()))
    sys.stdout.buffer.flush()
send(started=pb.EmergenceStarted(
    continuation_texts=[asked["record"], asked["prompt"], asked["continuation"],
                        str(asked["omit_groups"])], steps=[0, 5, 10]))
for step in (0, 5, 10):
    if step:
        send(interval=pb.EmergenceInterval(first_step=step - 5, last_step=step, change=step / 2,
                                           group_changes=[step, 1.5], gap=0.25, example_ids=[3]))
    send(point=pb.EmergencePoint(step=step, logprob=step - 20.0, token_logprobs=[step / 2, -20]))
"""
# Answers a request once, and then waits for the end of its input.
WAITS = """
import sys
from whence.v1 import training_pb2 as pb
from whence_server.lineage.framing import frame_message
sys.stdin.readline()
sys.stdout.buffer.write(frame_message(pb.TraceEmergenceResponse(
    started=pb.EmergenceStarted()).SerializeToString()))
sys.stdout.buffer.flush()
"""
WAITS_FOR_END = WAITS + "sys.stdin.read()"
NEVER_ENDS = WAITS + "import signal; signal.pause()"
REFUSES = """
import sys
sys.stdin.readline()
print("a warning of some library", file=sys.stderr)
print('{refusal}', file=sys.stderr)
raise SystemExit({status})
"""
