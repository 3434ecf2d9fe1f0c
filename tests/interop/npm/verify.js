// @sigstore/verify: checkpoint and inclusion. Run in the folder that holds node_modules, with case folders as arguments.
const fs = require('fs');
const path = require('path');
const crypto = require('crypto');
const client = path.join(process.cwd(), 'node_modules/@sigstore/verify/dist');
const { verifyMerkleInclusion } = require(path.join(client, 'tlog/merkle.js'));
const { verifyCheckpoint } = require(path.join(client, 'tlog/checkpoint.js'));
const raw = (text) => Buffer.from(text, 'base64');
const SPKI = Buffer.from('302a300506032b6570032100', 'hex'); // in front of the 32 bytes of an Ed25519 key

function verify(folder, c) {
  const publicKey = crypto.createPublicKey({
    key: Buffer.concat([SPKI, raw(c.public_key)]), format: 'der', type: 'spki',
  });
  const logID = Buffer.concat([Buffer.from(c.vkey.split('+')[1], 'hex'), Buffer.alloc(28)]);
  const entry = {
    canonicalizedBody: raw(c.leaf),
    inclusionProof: {
      logIndex: String(c.index), treeSize: String(c.size), rootHash: raw(c.root),
      hashes: c.proof.map(raw), checkpoint: { envelope: c.checkpoint },
    },
  };
  const checkpoint = verifyCheckpoint(entry, [{ logID, baseURL: 'https://' + c.origin, publicKey }]);
  verifyMerkleInclusion(entry, checkpoint);
}

for (const folder of process.argv.slice(2)) {
  const c = JSON.parse(fs.readFileSync(path.join(folder, 'case.json')));
  try {
    verify(folder, c);
    console.log(`${c.name}\taccepted`);
  } catch (error) {
    if (error.constructor.name !== 'VerificationError') throw error;
    console.log(`${c.name}\trefused\t${error.message}`);
  }
}
