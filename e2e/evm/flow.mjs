// The flows of a developer through ethers and viem against a chain at argv[2] (HOST:PORT), HTTP and WebSocket.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { ethers } from "ethers";
import { createPublicClient, createTestClient, createWalletClient, http, parseEther, webSocket } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { foundry } from "viem/chains";

const at = process.argv[2];
const { abi, bytecode } = JSON.parse(readFileSync(new URL("counter.json", import.meta.url)));
const key = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";

// ethers: deploy, call, send, an event over the WebSocket, a revert with its data.
const provider = new ethers.JsonRpcProvider(`http://${at}`, undefined, { cacheTimeout: -1 });
const socket = new ethers.WebSocketProvider(`ws://${at}`);
const wallet = new ethers.NonceManager(new ethers.Wallet(key, provider));
const contract = await new ethers.ContractFactory(abi, bytecode, wallet).deploy(3n);
await contract.waitForDeployment();
assert.equal(await contract.count(), 3n);
const heard = new Promise((done) =>
  new ethers.Contract(contract.target, abi, socket).on("Counted", (_by, count, note) => done([count, note])));
const head = new Promise((done) => socket.once("block", done));
await new Promise((done) => setTimeout(done, 300));
const receipt = await (await contract.add(4n, "four")).wait();
assert.equal(receipt.status, 1);
assert.deepEqual(await heard, [7n, "four"]);
assert.ok((await head) >= receipt.blockNumber);
await assert.rejects(contract.add.staticCall(2000n, ""), (error) => error.revert?.name === "TooMuch");
await assert.rejects(contract.add.staticCall(0n, ""), (error) => error.reason === "nothing to add");
assert.equal((await contract.queryFilter("Counted", 0)).length, 1);
const signer = await provider.getSigner(0);
const typed = [{ name: "viv", chainId: 31337 }, { Mail: [{ name: "to", type: "address" }] }, { to: contract.target }];
assert.equal(ethers.verifyTypedData(...typed, await signer.signTypedData(...typed)), await signer.getAddress());

// viem: the test client's verbs, a subscription, traces of a multi-step flow.
const account = privateKeyToAccount(key);
const chain = { ...foundry, rpcUrls: { default: { http: [`http://${at}`] } } };
const pub = createPublicClient({ chain, transport: http() });
const live = createPublicClient({ chain, transport: webSocket(`ws://${at}`) });
const test = createTestClient({ chain, mode: "anvil", transport: http() });
const owner = createWalletClient({ chain, account, transport: http() });
const hash = await owner.deployContract({ abi, bytecode, args: [1n] });
const { contractAddress: address } = await pub.waitForTransactionReceipt({ hash });
const told = new Promise((done) => {
  const stop = live.watchBlocks({ onBlock: (block) => (stop(), done(block.number)) });
});
const events = new Promise((done) => {
  const stop = live.watchContractEvent({ address, abi, eventName: "Counted", onLogs: (logs) => (stop(), done(logs)) });
});
await new Promise((done) => setTimeout(done, 300));
const snapshot = await test.snapshot();
const { request, result } = await pub.simulateContract({ account, address, abi, functionName: "add", args: [8n, "eight"] });
assert.equal(result, 9n);
await pub.waitForTransactionReceipt({ hash: await owner.writeContract(request) });
assert.equal((await events)[0].args.note, "eight");
assert.ok((await told) > 0n);
await test.mine({ blocks: 2, interval: 60 });
await test.increaseTime({ seconds: 100 });
await test.setBalance({ address: account.address, value: parseEther("3") });
assert.equal(await pub.getBalance({ address: account.address }), parseEther("3"));
await test.revert({ id: snapshot });
assert.equal(await pub.readContract({ address, abi, functionName: "count" }), 1n);
const proof = await pub.getProof({ address, storageKeys: ["0x" + "0".repeat(64)] });
assert.equal(proof.storageProof[0].value, 1n);
const simulated = await pub.simulateBlocks({
  blocks: [{ calls: [{ account: account.address, to: address, abi, functionName: "count" }] }],
});
assert.equal(simulated[0].calls[0].result, 1n);
console.log("ethers and viem: every flow passed");
process.exit(0);
