#!/usr/bin/env python3
"""The flows of a developer through web3.py against a chain that runs at argv[1] (http://HOST:PORT)."""
import json
import pathlib
import sys

from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data
from web3 import Web3
from web3.exceptions import ContractCustomError, ContractLogicError, ContractPanicError, Web3RPCError

url = sys.argv[1]
w3 = Web3(Web3.HTTPProvider(url))
artifact = json.loads((pathlib.Path(__file__).parent / "counter.json").read_text())
me, other = w3.eth.accounts[:2]
key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"


def ask(method, *params):
    answer = w3.provider.make_request(method, list(params))
    assert "error" not in answer, (method, answer)
    return answer["result"]


def fails(call, *kinds):
    try:
        call()
    except kinds as error:
        return error
    raise AssertionError("it should have failed")


# Accounts, and a chain that begins as tools expect.
assert w3.is_connected() and w3.eth.chain_id == 31337 and w3.net.version == "31337"
assert me == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266" and len(w3.eth.accounts) == 10
assert w3.eth.get_balance(me) == 10_000 * 10**18

# Deploy, call, send, receipts.
contract = w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
receipt = w3.eth.wait_for_transaction_receipt(contract.constructor(7).transact({"from": me, "value": 10**18}))
assert receipt.status == 1 and receipt.blockNumber == 1 and receipt.contractAddress
counter = w3.eth.contract(address=receipt.contractAddress, abi=artifact["abi"])
assert counter.functions.count().call() == 7
blocks = w3.eth.filter("latest")
logs = counter.events.Counted.create_filter(from_block="latest")
waiting = w3.eth.filter("pending")
sent = counter.functions.add(5, "five").transact({"from": other})
receipt = w3.eth.wait_for_transaction_receipt(sent)
assert counter.functions.given(other).call() == 5 and counter.functions.count().call() == 12
assert counter.functions.count().call(block_identifier=1) == 7, "state of an old block"
event = counter.events.Counted().process_receipt(receipt)[0]
assert (event.args.by, event.args.count, event.args.note) == (other, 12, "five")
assert [entry.args.count for entry in logs.get_new_entries()] == [12] and logs.get_new_entries() == []
assert blocks.get_new_entries() == [receipt.blockHash] and waiting.get_new_entries() == [sent]
assert len(counter.events.Counted.get_logs(from_block=0)) == 1
assert counter.events.Counted.get_logs(from_block=0, argument_filters={"by": me}) == []

# What is signed elsewhere, of every type.
account = Account.from_key(key)
base = {"chainId": 31337, "gas": 100_000, "to": other, "value": 1}
nonce = w3.eth.get_transaction_count(me)
kinds = [
    {"gasPrice": 3 * 10**9},
    {"gasPrice": 3 * 10**9, "type": 1, "accessList": [{"address": other, "storageKeys": []}]},
    {"maxFeePerGas": 3 * 10**9, "maxPriorityFeePerGas": 10**9},
]
for index, fees in enumerate(kinds):
    raw = account.sign_transaction({**base, **fees, "nonce": nonce + index}).raw_transaction
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(raw))
    assert receipt.status == 1 and receipt.type == index
    assert w3.eth.get_transaction(receipt.transactionHash)["from"] == me
delegation = account.sign_authorization({"chainId": 31337, "address": counter.address, "nonce": nonce + 4})
raw = account.sign_transaction({**base, **kinds[2], "to": me, "nonce": nonce + 3, "authorizationList": [delegation]})
w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(raw.raw_transaction))
assert w3.eth.get_code(me).hex().startswith("ef0100"), "EIP-7702"

# Failures, each as clients recognise it.
def refused(fees, text):
    raw = account.sign_transaction({**base, **kinds[2], "nonce": w3.eth.get_transaction_count(me), **fees}).raw_transaction
    message = str(fails(lambda: w3.eth.send_raw_transaction(raw), Web3RPCError))
    assert text in message, message

refused({"nonce": 0}, "nonce too low")
refused({"gas": 20_000}, "intrinsic gas too low")
refused({"chainId": 5}, "invalid chain id")
refused({"value": 10**24}, "insufficient funds")
refused({"maxFeePerGas": 1, "maxPriorityFeePerGas": 1}, "underpriced")
refused({"maxFeePerGas": 10**9, "maxPriorityFeePerGas": 10**10}, "priority fee")
refused({"gas": 40_000_000}, "gas limit")
error = fails(lambda: counter.functions.add(0, "").call(), ContractLogicError)
assert "nothing to add" in str(error), error
error = fails(lambda: counter.functions.add(2000, "").call(), ContractCustomError)
assert error.data.startswith(Web3.keccak(text="TooMuch(uint256,uint256)").hex()[:8] if not error.data.startswith("0x") else "0x" + Web3.keccak(text="TooMuch(uint256,uint256)").hex()[:8])
fails(lambda: counter.functions.panic(0).call(), ContractPanicError)
assert "out of gas" in str(fails(lambda: counter.functions.forever().call({"gas": 1_000_000}), Web3RPCError))
fails(lambda: counter.functions.giant(2**64).call(), Web3RPCError)
assert w3.provider.make_request("evm_nothing", [])["error"]["code"] == -32601
assert w3.provider.make_request("eth_getBalance", [])["error"]["code"] == -32602
assert w3.provider.make_request("eth_getBalance", [me, "0x999"])["error"]["code"] == -32001

# Fees and estimates.
history = w3.eth.fee_history(4, "latest", [10, 90])
assert len(history.baseFeePerGas) == 5 and len(history.reward) == 4
assert w3.eth.gas_price > 0 and w3.eth.max_priority_fee > 0
estimate = counter.functions.add(1, "x").estimate_gas({"from": me})
receipt = w3.eth.wait_for_transaction_receipt(counter.functions.add(1, "x").transact({"from": me, "gas": estimate}))
assert receipt.status == 1 and receipt.gasUsed <= estimate < receipt.gasUsed * 1.2
access = ask("eth_createAccessList", {"from": me, "to": counter.address, "data": counter.encode_abi("count")}, "latest")
assert access["accessList"][0]["storageKeys"] == ["0x" + "0" * 64]

# Signatures.
signed = w3.eth.sign(me, text="hello")
assert Account.recover_message(encode_defunct(text="hello"), signature=signed) == me
typed = {
    "types": {
        "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "chainId", "type": "uint256"}],
        "Mail": [{"name": "to", "type": "address"}, {"name": "words", "type": "string[]"}],
    },
    "primaryType": "Mail",
    "domain": {"name": "viv", "chainId": 31337},
    "message": {"to": other, "words": ["a", "bc"]},
}
assert Account.recover_message(encode_typed_data(full_message=typed), signature=ask("eth_signTypedData_v4", me, typed)) == me

# Traces.
trace = ask("debug_traceTransaction", receipt.transactionHash.to_0x_hex(), {"tracer": "callTracer"})
assert trace["type"] == "CALL" and int(trace["gasUsed"], 16) == receipt.gasUsed
steps = ask("debug_traceTransaction", receipt.transactionHash.to_0x_hex())
assert steps["gas"] == receipt.gasUsed and steps["structLogs"][0]["op"].startswith("PUSH")
before = ask("debug_traceTransaction", receipt.transactionHash.to_0x_hex(), {"tracer": "prestateTracer"})
assert counter.address.lower() in before
call = {"from": me, "to": counter.address, "data": counter.encode_abi("spawn")}
assert ask("debug_traceCall", call, "latest", {"tracer": "callTracer"})["calls"][0]["type"] == "CREATE"

# Proofs and simulations.
proof = w3.eth.get_proof(counter.address, [0, 5], "latest")
assert proof.storageProof[0].value in (w3.to_bytes(13), 13, "0xd") or int.from_bytes(bytes(proof.storageProof[0].value), "big") == 13
simulated = ask("eth_simulateV1", {"blockStateCalls": [{"calls": [
    {"from": me, "to": counter.address, "data": counter.encode_abi("add", [2, "sim"])},
    {"from": me, "to": counter.address, "data": counter.encode_abi("count")},
]}]}, "latest")
assert int(simulated[0]["calls"][1]["returnData"], 16) == 15 and len(simulated[0]["calls"][0]["logs"]) == 1
override = {counter.address: {"stateDiff": {"0x" + "0" * 64: "0x" + "0" * 62 + "ff"}}}
assert int(ask("eth_call", {"to": counter.address, "data": counter.encode_abi("count")}, "latest", override), 16) == 255

# Snapshots, time, mining, impersonation, dumps.
snapshot, head, count = ask("evm_snapshot"), w3.eth.block_number, counter.functions.count().call()
counter.functions.add(9, "gone").transact({"from": me})
ask("evm_increaseTime", 3600)
ask("evm_mine")
assert w3.eth.get_block("latest").timestamp >= w3.eth.get_block(head).timestamp + 3600
assert ask("evm_revert", snapshot) is True and ask("evm_revert", snapshot) is False
assert w3.eth.block_number == head and counter.functions.count().call() == count
ask("evm_setNextBlockTimestamp", 4_000_000_000)
ask("hardhat_mine", "0x3", "0x3c")
assert w3.eth.block_number == head + 3 and w3.eth.get_block("latest").timestamp == 4_000_000_120
stranger = Web3.to_checksum_address("0x" + "42" * 20)
ask("anvil_setBalance", stranger, hex(10**18))
fails(lambda: w3.eth.send_transaction({"from": stranger, "to": me, "value": 1}), Web3RPCError)
ask("anvil_impersonateAccount", stranger)
receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_transaction({"from": stranger, "to": me, "value": 1}))
assert receipt["from"] == stranger and receipt.status == 1
ask("anvil_stopImpersonatingAccount", stranger)
ask("hardhat_setStorageAt", counter.address, "0x0", "0x" + "0" * 62 + "2a")
ask("hardhat_setCode", stranger, "0x60016000f3")
assert counter.functions.count().call() == 42 and w3.eth.get_code(stranger).hex() == "60016000f3"
dump = ask("anvil_dumpState")
assert ask("anvil_loadState", dump) is True and counter.functions.count().call() == 42
ask("evm_setAutomine", False)
sent = w3.eth.send_transaction({"from": me, "to": other, "value": 1})
assert ask("txpool_status") == {"pending": "0x1", "queued": "0x0"}
assert w3.eth.get_transaction_count(me, "pending") == w3.eth.get_transaction_count(me) + 1
assert w3.eth.get_block("pending")["transactions"] == [sent]
ask("evm_mine")
assert w3.eth.get_transaction_receipt(sent).status == 1
ask("evm_setAutomine", True)
print("web3.py: every flow passed")
